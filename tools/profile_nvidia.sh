#!/usr/bin/env bash
# Profiles a command with Nsight Systems or Nsight Compute: profile_nvidia.sh nsys|ncu COMMAND...
# The report goes to $PROFILE_OUT (default .baton/profile); says clearly when the tool is absent.
set -euo pipefail

tool=$1
shift
out=${PROFILE_OUT:-.baton/profile}

if ! command -v "$tool" >/dev/null; then
  echo "$tool is not on PATH, so nothing was profiled. It comes with NVIDIA's CUDA toolkit or as" >&2
  case $tool in
    nsys) echo "package nsight-systems (https://developer.nvidia.com/nsight-systems)." >&2 ;;
    *) echo "package nsight-compute (https://developer.nvidia.com/nsight-compute)." >&2 ;;
  esac
  echo "Without a GPU use: make profile-torch" >&2
  exit 1
fi

mkdir -p "$(dirname "$out")"
case $tool in
  nsys)
    nsys profile -t cuda,nvtx,osrt -o "$out" --force-overwrite true "$@"
    nsys stats --report nvtx_sum,cuda_gpu_kern_sum "$out.nsys-rep"
    ;;
  ncu)
    # What older tools called achieved occupancy, warp efficiency, DRAM throughput.
    ncu --metrics sm__warps_active.avg.pct_of_peak_sustained_active,smsp__thread_inst_executed_per_inst_executed.ratio,dram__bytes_read.sum.per_second,dram__bytes_write.sum.per_second \
      --launch-skip "${PROFILE_SKIP:-2000}" --launch-count "${PROFILE_KERNELS:-200}" \
      -f -o "$out" "$@"
    ncu --import "$out.ncu-rep" --page raw --print-summary per-kernel
    ;;
  *)
    echo "unknown tool $tool: nsys or ncu" >&2
    exit 2
    ;;
esac
