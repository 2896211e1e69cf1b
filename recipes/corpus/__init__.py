# SPDX-License-Identifier: Apache-2.0
"""The steps of prepare_data.py, from raw sources to clean documents: one step a file."""
