# SPDX-License-Identifier: Apache-2.0
"""What is trained: the Llama model, its attention, its loss, and a base model to continue from."""
