# SPDX-License-Identifier: Apache-2.0
"""List the files of a recipe's sources, and read the rows and texts in them."""
