"""tashiSSH: VMs of an Apache Tashi cluster."""
