# SPDX-License-Identifier: Apache-2.0
"""Where text comes from: the training documents that hold it."""
