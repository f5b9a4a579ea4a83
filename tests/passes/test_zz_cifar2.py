import io, zipfile, json, time, os
import numpy as np, pytest, torch
import networks
from PIL import Image
from torch import fx
S="/work/shared/data/"
def images(path, per=None):
    z=zipfile.ZipFile(path); xs,ys=[],[]
    names=[n for n in z.namelist() if n.endswith((".jpg",".jpeg",".png"))]
    classes=sorted({n.split("/")[-2] for n in names})
    for n in names:
        xs.append(np.asarray(Image.open(io.BytesIO(z.read(n))).convert("RGB"))); ys.append(classes.index(n.split("/")[-2]))
    x=np.stack(xs).astype(np.float32).transpose(0,3,1,2)/255
    x=(x-np.array([.485,.456,.406],np.float32)[:,None,None])/np.array([.229,.224,.225],np.float32)[:,None,None]
    y=np.array(ys,np.int64); o=np.random.default_rng(0).permutation(len(y)); return x[o],y[o]
def test_it(bench):
    x,y=images(S+"datasets/cifar10-jpeg/train10000.zip"); xt,yt=images(S+"datasets/cifar10-jpeg/test2000.zip")
    bench.dataset("c", train=(x[:2000],y[:2000]), val=(x[9000:],y[9000:]), test=(xt[:1000],yt[:1000]))
    m=networks.CifarResNet(3)
    sd=torch.load(S+"models/cifar10_resnet20.th",weights_only=True,map_location="cpu")["state_dict"]
    m.load_state_dict({k.removeprefix("module."):v for k,v in sd.items()},strict=False)
    bench.model("r", m, (3,32,32))
    for kw in ({}, {"solve":"scale"}, {"finetune": {"epochs":1,"lr":0.01}}):
        t=time.time(); v,r=bench.run(kind="share", model="r@1", dataset="c@1", method="grouped_conv", **kw)
        print("RUN", kw, round(time.time()-t,1), r["validation"], r["quality_before"], r["quality_after"])
    e,rr=bench.run(kind="convert", model=v.ref, target="openvino"); print(e.metrics.parity, [(l.batch,l.p50_ms) for l in e.metrics.latency])
    e,rr=bench.run(kind="convert", model="r@1", target="openvino"); print(e.metrics.parity, [(l.batch,l.p50_ms) for l in e.metrics.latency])
