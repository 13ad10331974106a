"""Values handed over in shared memory: who may read which block, and when it is free again.

A process publishes blocks of its arena; what travels is a descriptor. Only the hub's lease table
says who may read a publication, and when its owner may use the memory again.
"""
