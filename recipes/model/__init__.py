# SPDX-License-Identifier: Apache-2.0
"""The Llama model, its attention, its loss, and the base model to continue from."""
