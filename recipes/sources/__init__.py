# SPDX-License-Identifier: Apache-2.0
"""What a recipe reads: where a source's files are, and the rows and texts in them."""
