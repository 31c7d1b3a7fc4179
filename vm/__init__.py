"""The Vagrantfile's three machines, made, tried and removed by one command: `scripts/vm-test`.

`host.py` is libvirt on this machine, `machines.py` Vagrant and the three machines, `scenarios.py`
what is tried; `guest/` is what the machines are made of.
"""
