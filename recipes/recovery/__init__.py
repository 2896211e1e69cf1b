# SPDX-License-Identifier: Apache-2.0
"""How a run survives interruptions: checkpoints, resuming, signals, the run folder's lock, the event log."""
