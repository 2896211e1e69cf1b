# SPDX-License-Identifier: Apache-2.0
"""From a budget to a plan: what plan_run.py and fit_scaling_law.py are made of, one step a file."""
