"""One file for each command of `zslx`; cli names them and imports each only when it is asked for.

The top of zslx: nothing imports it.
"""
