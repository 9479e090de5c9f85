"""What would go wrong if this manifest were run here and now: questions only, nothing is written or sent.

`stored` and `transport.inspecting` look; `machine`, `service` and `permissions` judge; `examine` brings them
together.
"""
