# SPDX-License-Identifier: Apache-2.0
"""The public texts that the trials were run on: where each is (table.csv), and how it becomes JSON lines."""
