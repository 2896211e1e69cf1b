# SPDX-License-Identifier: Apache-2.0
"""How a run survives: checkpoints, resuming, signals, the lock of the run folder, the event log."""
