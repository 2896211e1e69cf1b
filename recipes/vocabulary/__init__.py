# SPDX-License-Identifier: Apache-2.0
"""From documents to a tokenizer: the steps of train_tokenizer.py, one a file."""
