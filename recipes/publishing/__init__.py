# SPDX-License-Identifier: Apache-2.0
"""What push_to_hub.py is made of: the files of a release, the checks before they leave, the card, the extras."""
