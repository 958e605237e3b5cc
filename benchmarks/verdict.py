"""exploration"""
import json, sys, time, os, traceback
from pathlib import Path
import numpy as np, torch
import regkit
from regkit import registration
from verdict_cases import *
CACHE=Path(os.environ.get('VCACHE','/work/tmp/verdict-cache')); CACHE.mkdir(exist_ok=True)

def key(name): 
    import hashlib; return hashlib.sha1(name.encode()).hexdigest()[:12]

def run(pair):
    t=time.perf_counter()
    res=regkit.register(pair.fixed,pair.moving,init=pair.init,threads=1)
    sec=time.perf_counter()-t
    row=dict(name=pair.name,half=pair.half,kind=pair.kind,right=pair.right,seconds=sec)
    row['truth']=pair.truth(res) if pair.truth else None
    d=res.to_dict()
    row['timings']=d['seconds']
    row['metrics']={k:d['metrics'][k] for k in ('folding_percent','sd_log_jacobian','feature_difference','evidence')}
    row['start']=d['settings']['start']; row['linear']=d['linear']
    u=res.uncertainty.array
    row['doubt_med']=float(np.median(u)); row['doubt_90']=float(np.percentile(u,90)); row['vox']=float(np.prod(pair.fixed.grid.spacing)**(1/3)); row['work']=d['settings']['working_spacing_mm']
    g=res.warp.grid; k=2
    f=res.warp.field[::k,::k,::k]
    np.savez(CACHE/f'{key(pair.name)}.npz',field=f.astype(np.float32),size=f.shape[2::-1],spacing=np.array(g.spacing)*k,origin=g.origin,direction=g.direction, doubt=res.doubt.image.numpy().astype(np.float16))
    return row,res

def main():
    torch.set_num_threads(1)
    out=CACHE/sys.argv[1]; step=int(sys.argv[2]); part=int(sys.argv[3])
    rows=json.loads(out.read_text()) if out.exists() else {}
    makers=[*right_makers(),*wrong_makers()]
    byk={}
    for n,k,mk in makers: byk.setdefault(k,[]).append((n,k,mk))
    print({k:len(v) for k,v in byk.items()},len(makers),flush=True)
    for k in byk:
        if k in ('mirrored','upside down','other body part'): byk[k]=byk[k][::2]
        elif not k.startswith(('real','painted','bent')): byk[k]=[v for i,v in enumerate(byk[k]) if i%4!=3]
    print({k:len(v) for k,v in byk.items()},flush=True)
    # every kind bit by bit, so that what is there early is of all kinds
    order=sorted(((i%step, k, i, m) for k,v in byk.items() for i,m in enumerate(v)), key=lambda t:t[:3])
    for _,_,i,(n,k,mk) in order:
        if n in rows: continue
        try:
            pair=mk()
            row,res=run(pair)
        except regkit.RegkitError as e:
            row=dict(name=n,kind=k,half=pair.half,right=pair.right,error=str(e)); res=None
        except Exception:
            print(n); traceback.print_exc(); continue
        rows[n]=row
        if res is not None and ((k=='real' and n.endswith('start 0')) or k=='painted trunks'):
            o=off(n+', start off',pair,res.linear,res.warp.transform_points)
            try: row2,_=run(o); rows[o.name]=row2
            except regkit.RegkitError as e: rows[o.name]=dict(name=o.name,kind=o.kind,half=o.half,right=False,error=str(e))
        print(n,'|',k,'|',row.get('error') or f"{row['seconds']:.1f}s {row['start']} {row['truth']}",flush=True)
        out.write_text(json.dumps(rows))
main()
