"""The sample store: ten petabytes and 10¹¹ samples by design, read at random, nothing lost.

A *sample* is a mapping of named fields: bytes, text, an image, arrays, lists. Samples are packed into *shards*, files that never
change; a *catalogue* names the shards of each version of a store and holds some columns of every sample; an *order* says which
sample comes next; a *loader* makes batches of them. A *pipeline* turns files of any format into a store: decode, filter, remove
duplicates, write.

    n       number of samples                            i       number of a sample, 0 <= i < n
    s, j    shard, number of a sample in its shard       p       position in an order, counted over all ranks

The files, in the order to read them:

    fields, sample, shard, store      what a sample is; its bytes; a file of them; many files under one numbering
    catalogue                         versions, columns of all samples, filters
    order, loader, packing, images    which sample next; batches; sequences packed to a fixed length; pictures
    piece, convert                    how data comes in, and goes out in the formats of others
    pipeline                          stages over pieces, on processes or Dask
    text, pii, minhash, tokens        stages for text
    card, engine, figures             what a data set tells of itself; the engine `data`

`docs/data-format.md` describes a shard byte by byte.
"""

from gewu.data.fields import Field, Schema
from gewu.data.shard import Shard, ShardWriter
from gewu.data.store import Store, open_shards

__all__ = ["Field", "Schema", "Shard", "ShardWriter", "Store", "open_shards"]
