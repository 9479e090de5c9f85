"""The emulator: AWS Snow Device Management as a local HTTP service with faults and a ledger.

Import from the modules: `app.run_emulator`, `config.Config`, `faults.FaultPlan`, `fleet.fleet_id`. Nothing
is imported here, so that the command line's help need not load an HTTP server.
"""
