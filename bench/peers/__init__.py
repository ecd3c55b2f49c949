"""The loops that the runtime is measured beside, each as its users would write it."""
