# SPDX-License-Identifier: Apache-2.0
"""From a budget to a plan: scaling laws, model shapes, memory, cost, and the choice of the vocabulary's size."""
