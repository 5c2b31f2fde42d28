"""Data too large for an index or for memory: read shard by shard, in an order that can be taken up at any place.

A shard is a row group of a local parquet file, a parquet file on the Hub, or a webdataset ``.tar``. Each lane (see
below) holds one parquet shard in memory. What holds of the order:

- An epoch deals the shards, in an order that follows from (seed, epoch), in turn to a few *lanes*, and every lane reads
  its shards one after the other. Each row belongs to one lane of an epoch and is read once in it. A batch takes equally
  many rows from every lane, so that lanes of unequal shards are at times in neighbouring epochs.
- The rows of a lane are shuffled in blocks: while one block is used, the next is read. The order within a block follows
  from (seed, epoch, lane, block), not from what is in it.
- So the row at any place of a run follows from the seed, the batch size and the data, whatever the number of processes
  and loader workers, and a run resumes exactly. To resume, a lane passes over the shards before its block by their row
  counts, noted when they were read to their end, and reads the rest of one shard and the block again. (The shuffle
  buffer of `datasets` is not used: on a resume it gives up the rows that it holds.)
"""
