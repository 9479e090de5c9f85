"""The dispatcher: bulk CreateTask for AWS Snow Device Management, every device exactly once."""
