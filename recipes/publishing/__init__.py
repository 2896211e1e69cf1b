# SPDX-License-Identifier: Apache-2.0
"""Parts of push_to_hub.py: the files of a release, the checks before they leave, the cards, the transfer."""
