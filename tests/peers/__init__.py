"""What `finetune bench speed` compares with: transformers' Trainer and plain loops, written as their users write them.

They are here and not in the package because the product never imports them, and they import nothing of it: rows and
models reach them as files, and what they time is their own. Each is a process of its own.
"""
