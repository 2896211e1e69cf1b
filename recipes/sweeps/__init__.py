# SPDX-License-Identifier: Apache-2.0
"""Experiments of many training runs: what fit_scaling_law.py, compare_arms.py and choose_vocabulary.py are made of."""
