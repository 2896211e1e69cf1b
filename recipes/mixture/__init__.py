# SPDX-License-Identifier: Apache-2.0
"""From tokenized documents to the tokens of a training step: shards, shares, order, batches."""
