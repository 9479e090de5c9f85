"""Rate control in a laboratory of virtual time, and over real sockets: `python -m bench rate`."""
