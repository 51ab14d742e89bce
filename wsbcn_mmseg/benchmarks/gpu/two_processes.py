"""A part of the report: statistics of all ranks and gradients averaged by DDP, in two processes on one or two GPUs.

``python -m wsbcn_mmseg.benchmarks.gpu.two_processes --device cuda --out FOLDER``. Most versions of NCCL do not allow
two processes on one GPU; then gloo is used.
"""
import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException, start_processes
from torch.nn.parallel import DistributedDataParallel

from wsbcn_mmseg.layers import BCN, ConvWS
from wsbcn_mmseg.runtime.errors import first_line

PROCESSES, IMAGES, CHANNELS, SIDE = 2, 4, 16, 17
SECONDS = 60  # per backend
TOLERANCE = 1e-4  # relative to the largest value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cuda', help='cuda or cpu')
    parser.add_argument('--out', type=Path, required=True, help='folder of two_processes.json')
    return parser.parse_args()


def network(sync: bool) -> nn.Sequential:
    """A network with WS, BCN with the statistics of all ranks, and BCN by Algorithm 1 with those of its own rank."""
    torch.manual_seed(0)
    layers = [ConvWS(CHANNELS, CHANNELS, 3), BCN(CHANNELS, mode='large_batch', sync=sync)]
    return nn.Sequential(*layers, nn.ReLU(), ConvWS(CHANNELS, CHANNELS, 3), BCN(CHANNELS, update_rate=0.0))


def results(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Loss and gradients. The loss is a mean over images, so that DDP's mean over ranks is the mean over all images."""
    loss = model(images).cos().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def compare(rank: int, backend: str, kind: str, address: str, out: str) -> None:
    """Runs in each process: two processes with half of the images must give the gradients of one with all images."""
    device = torch.device(kind, rank % torch.cuda.device_count()) if kind == 'cuda' else torch.device(kind)
    if kind == 'cuda':
        torch.cuda.set_device(device)
    dist.init_process_group(backend, address, rank=rank, world_size=PROCESSES,
                            timeout=datetime.timedelta(seconds=SECONDS))
    dist.all_reduce(torch.ones(1, device=device))  # NCCL fails here if it does not allow this
    torch.backends.cudnn.allow_tf32 = False  # so that the number of images does not change roundings
    images = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(device)
    expected = results(network(sync=False).to(device), images)  # in one process
    wrapped = DistributedDataParallel(network(sync=True).to(device),
                                      device_ids=[device.index] if kind == 'cuda' else None)
    got = results(wrapped, images.chunk(PROCESSES)[rank])
    loss = got[0].clone()
    dist.all_reduce(loss)
    got[0] = loss / PROCESSES
    errors = [((a - b).abs().max() / b.abs().max().clamp(min=1e-3)).item() for a, b in zip(got, expected, strict=True)]
    if rank == 0:
        Path(out).write_text(json.dumps({'backend': backend, 'device': str(device), 'largest_error': max(errors),
                                         'tolerance': TOLERANCE, 'passed': max(errors) <= TOLERANCE}))
    del wrapped
    dist.destroy_process_group()


def run(backend: str, device: str, folder: Path) -> str:
    """Run the processes; returns why they failed, or an empty string."""
    store = folder / f'rendezvous_{backend}'
    store.unlink(missing_ok=True)
    context = start_processes(compare, (backend, device, f'file://{store.resolve()}',
                                        str(folder / 'two_processes.json')), PROCESSES, join=False)
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            if time.monotonic() > end:
                return f'no answer within {SECONDS} s'
    except ProcessRaisedException as error:
        return first_line(RuntimeError(str(error).strip().splitlines()[-1]))
    except Exception as error:  # for example if a process was killed
        return first_line(error)
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return ''


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'two_processes.json'
    path.unlink(missing_ok=True)
    reason = ''
    for backend in ('nccl', 'gloo') if args.device == 'cuda' else ('gloo', ):
        if reason := run(backend, args.device, args.out):
            print(f'{backend}: {reason}', flush=True)
        else:
            break
    if not path.is_file():
        sys.exit(f'two processes cannot work together here: {reason}')
    print(path.read_text())
    if not json.loads(path.read_text())['passed']:
        sys.exit('the gradients of two processes are not those of one')


if __name__ == '__main__':
    main()
