# SPDX-License-Identifier: Apache-2.0
"""The label of a token that no loss is computed for, in batches, in evaluation and in the loss itself."""

IGNORED_LABEL = -100
