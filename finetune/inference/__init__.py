"""`finetune predict`: a run's exported model on new rows. One module a kind of model; command.py says which it is."""
