"""Memory of a table that is dropped while another stream may still read it."""

import torch
from support.reach import tensors_in
from support.tensors import parameter

from greedylr_fused import FusedAdamW, GreedyLR


def test_all_of_it_is_recorded_on_the_current_stream(device, backend, monkeypatch):
    params = [parameter(torch.randn(n, device=device), torch.randn(n, device=device)) for n in (5, 300, 70_000)]
    params.append(parameter(torch.randn(6, 8, device=device)[:, ::2], torch.randn(6, 4, device=device)))
    opt = FusedAdamW(params, schedule=GreedyLR(smooth=False), max_grad_norm=1.0, backend=backend)
    opt.step(loss=1.0)
    table, running = opt._engine.table, opt._engine.backend
    table_tensors = [value for name, value in vars(table).items() if isinstance(value, torch.Tensor)]
    backends = tensors_in(vars(running), of="greedylr_fused.backends")
    users = {id(tensor) for own in opt.state.values() for tensor in own.values()} | {id(param) for param in params}
    needed = {
        tensor.untyped_storage().data_ptr()
        for tensor in [
            *table_tensors,
            *backends,
            *(entry.target for entry in table.entries),
        ]
        if id(tensor) not in users and tensor.device == table.device and tensor.numel()
    }
    needed -= {param.untyped_storage().data_ptr() for param in params}
    needed -= {vector.untyped_storage().data_ptr() for vector in (table.control, table.curve)}
    recorded = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: recorded.append((tensor, stream)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: "current")
    monkeypatch.setattr(table, "device", torch.device("cuda"))
    opt._engine.discard()
    assert {stream for _, stream in recorded} == {"current"}
    assert {tensor.untyped_storage().data_ptr() for tensor, _ in recorded if tensor.numel()} == needed
    opt.step(loss=2.0)
    assert opt.metrics().step == 2
