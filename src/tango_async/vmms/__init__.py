"""Back-ends that run jobs on machines. `base` is the contract; one file a back-end."""
