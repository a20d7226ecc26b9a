"""`make run`: an embedded broker, the setup, and every process in the Procfile, until Ctrl-C.

    python -m webapp.embedded

Nothing else has to be installed or running. In production the same processes run on separate
machines.
"""
