# SPDX-License-Identifier: Apache-2.0
"""From documents to a vocabulary: what train_tokenizer.py is made of, one step a file."""
