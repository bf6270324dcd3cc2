"""The ground floor: what every room of gewu stands on. Knows no physics.

The files, in the order to read them:

    errors, units, schema       the error tree; constants; configurations as data
    context, figure             the door between an engine and the world
    files, checkpoint           bytes that survive a kill
    machine, ranks              cores, memory, threads; MPI and its serial twin
    arrays, namespace           array programs on CPU and GPU;  hostfft, fftw: their transforms on CPUs
    kernel, device, random      one loop body for reference, CPU and CUDA; counter-based random numbers
    simd, lanes, mesh, vector   explicit vectors for CPU inner loops: tiles of pairs, scattered neighbours, patches of a mesh
    crc32c, objects, records    checksums; Python objects made by compiled code; records in mapped files
    permutation                 shuffled orders of any length without a table
    letters, minhash            writing systems; which texts are nearly the same
    workers, crew               one kind of work for one consumer; tasks on processes or Dask
    splines, erfc, statistics   tables, Ewald's smooth functions, errors of means
    bricks, growing             a box cut between ranks; files that grow
"""
