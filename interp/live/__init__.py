"""Watch a job while it runs. (The notebook face of the package.)"""
