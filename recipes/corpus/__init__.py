# SPDX-License-Identifier: Apache-2.0
"""From raw sources to clean documents: what prepare_data.py is made of, one step a file."""
