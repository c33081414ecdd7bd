"""A stand-in for nvidia-ml-py on a machine without GPUs: the driver has those that STANDIN_GPUS names.

`STANDIN_GPUS="GPU-a GPU-b:MIG-c+MIG-d"`: two GPUs, the second divided into two MIG instances.
"""

import os

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0


class NVMLError(Exception):
    pass


class _Handle:
    def __init__(self, uuid, instances=()):
        self.uuid, self.instances = uuid, instances


def _gpus():
    found = []
    for word in os.environ.get("STANDIN_GPUS", "").split():
        uuid, _, instances = word.partition(":")
        found.append(_Handle(uuid, [_Handle(one) for one in instances.split("+") if one]))
    return found


def nvmlInit():
    if not _gpus():
        raise NVMLError("Driver Not Loaded")


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index):
    return _gpus()[index]


def nvmlDeviceGetHandleByUUID(uuid):
    for gpu in _gpus():
        for handle in (gpu, *gpu.instances):
            if handle.uuid == uuid:
                return handle
    raise NVMLError("Not Found")


def nvmlDeviceGetUUID(handle):
    return handle.uuid


def nvmlDeviceGetMigMode(handle):
    if not handle.instances:
        raise NVMLError("Not Supported")
    return [1, 1]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    if index >= len(handle.instances):
        raise NVMLError("Not Found")
    return handle.instances[index]


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance):
    return next(gpu for gpu in _gpus() if instance.uuid in [one.uuid for one in gpu.instances])


def nvmlDeviceGetName(handle):
    return "Stand-in GPU" + (" MIG 1g" if handle.uuid.startswith("MIG-") else "")


def nvmlDeviceGetTotalEnergyConsumption(handle):
    if handle.uuid.startswith("MIG-"):
        raise NVMLError("Not Supported")
    return 1000


def nvmlDeviceGetComputeRunningProcesses(handle):
    return []


def __getattr__(name):
    if not name.startswith("nvml"):
        raise AttributeError(name)

    def call(*_):
        raise NVMLError("Not Supported")

    return call
