"""Stand-ins for parts of Pulumi that a machine cannot download: a language host and provider plugins.

A stand-in is used only where the real part is missing. It says so in its output, and refuses by name whatever it does
not do. `tools/README.md` lists the gaps.
"""
