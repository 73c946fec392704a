"""The courselab store: uploads, pinned inputs and outputs. `base` is the contract, one file a store."""
