"""Networks of the recipes: FCN-8s with and without a PAC-CRF, and joint upsampling with its baselines."""
