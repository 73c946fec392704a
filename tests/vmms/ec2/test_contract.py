"""ec2SSH keeps the contract of all back-ends."""

from contracts.vmms import VmmsContract


class TestEc2(VmmsContract):
    """The contract."""
