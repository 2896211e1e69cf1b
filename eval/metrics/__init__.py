# SPDX-License-Identifier: Apache-2.0
"""Metrics in the form of the `evaluate` library, a folder each: evaluate.load("eval/metrics/entity_f1")."""
