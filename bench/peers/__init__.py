"""What people would use instead, and the limits of the parts we use, each written as well as its fans would write it.

Their packages are in an environment of their own (requirements.lock beside this file): nothing of the mesh needs them.
"""
