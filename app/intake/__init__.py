"""What people upload, looked at before anything is made of it: checkpoints by their bytes, data sets row by row.

No torch, no scikit-learn: the app looks at checkpoints here, and a child process of it reads data sets.
"""
