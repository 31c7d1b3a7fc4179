"""The network-namespace lab: hosts on this machine, without virtual machines. See README.md."""
