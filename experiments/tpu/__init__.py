"""What the recipes for TPUs share."""
