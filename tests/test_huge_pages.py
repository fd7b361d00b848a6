"""Room for tensors in large pages."""

import gc
import weakref

import torch

from playground.system import huge_pages
from playground.system.huge_pages import PAGE, PART, HugePages


def test_tensors_lie_side_by_side_and_share_nothing():
    memory = HugePages()
    first, second = memory.empty((3, 7), torch.int8).fill_(1), memory.empty((5,), torch.float32).fill_(2)
    assert (first.shape, second.shape) == ((3, 7), (5,)) and (first.dtype, second.dtype) == (torch.int8, torch.float32)
    assert first.data_ptr() % PAGE == 0 and second.data_ptr() == first.data_ptr() + 64
    assert first.eq(1).all() and second.eq(2).all()


def test_what_is_larger_than_a_part_gets_one_of_its_own():
    memory = HugePages()
    small = memory.empty((100,), torch.int8).fill_(3)
    large = memory.empty((PART + 5,), torch.int8).fill_(4)
    after = memory.empty((100,), torch.int8).fill_(5)
    assert large.data_ptr() % PAGE == 0 and small.eq(3).all() and large.eq(4).all() and after.eq(5).all()


def test_a_part_fills_to_its_last_byte():
    memory = HugePages()
    tensors = [memory.empty((PART // 4,), torch.int8).fill_(i) for i in range(9)]
    assert all(tensor.eq(i).all() for i, tensor in enumerate(tensors))
    assert tensors[3].data_ptr() == tensors[0].data_ptr() + 3 * PART // 4
    assert len({tensor.data_ptr() for tensor in tensors}) == 9


def test_memory_goes_with_its_tensors(monkeypatch):
    made = []
    mapped = huge_pages.mmap.mmap

    class Map(mapped):
        def __init__(self, *_args, **_options):
            made.append(weakref.ref(self))

    monkeypatch.setattr(huge_pages.mmap, "mmap", Map)
    memory = HugePages()
    tensor = memory.empty((4,), torch.int8)
    del memory
    assert made[0]() is not None and tensor.fill_(7).sum() == 28
    del tensor
    gc.collect()
    assert made[0]() is None


def test_a_kernel_without_large_pages_gives_others(monkeypatch):
    monkeypatch.delattr(huge_pages.mmap, "MADV_HUGEPAGE")
    assert HugePages().empty((4,), torch.int8).fill_(7).sum() == 28
