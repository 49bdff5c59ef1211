"""`finetune bench speed`: the same updates by this toolkit and by its peers, side by side."""
