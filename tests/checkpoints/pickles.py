"""torch's files by hand: the opcodes of its pickles, and the archives that they lie in."""

import io
import struct
import zipfile

import numpy as np

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED_DICT = b"ccollections\nOrderedDict\n"


def archive(data, storages=(), extra=(), compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        for key, content in dict(storages).items():
            file.writestr(f"archive/data/{key}", content)
        for name, content in extra:
            file.writestr(name, content)
    return buffer.getvalue()


def unicode(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def storage(kind="FloatStorage", key="0", count=4, view=b""):
    identity = b"(" + unicode("storage") + f"ctorch\n{kind}\n".encode() + unicode(key) + unicode("cpu")
    return identity + b"J" + struct.pack("<i", count) + view + b"tQ"


def integers(*values):
    return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"


def tensor(offset=0, size=(2, 2), stride=(2, 1), what=None, rest=b""):
    arguments = b"(" + (what or storage()) + b"J" + struct.pack("<i", offset) + integers(*size) + integers(*stride)
    return TENSOR + arguments + b"\x89" + ORDERED_DICT + b")R" + rest + b"tR"


def program(body):
    return b"\x80\x02" + body + b"."


FLOATS = {"0": np.arange(4, dtype=np.float32).tobytes()}
